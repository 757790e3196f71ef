"""Reading and writing tar archives, as layers and as the outer form of image archives."""

from layerfs.formats.tar.header import BLOCK as BLOCK
from layerfs.formats.tar.member import Member as Member
from layerfs.formats.tar.member import split_path as split_path
from layerfs.formats.tar.reader import TarReader as TarReader
from layerfs.formats.tar.writer import END as END
from layerfs.formats.tar.writer import clamp_time as clamp_time
from layerfs.formats.tar.writer import encode_member as encode_member
from layerfs.formats.tar.writer import padding as padding
