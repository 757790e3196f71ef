"""Reading tar archives, as layers and as the outer form of image archives."""

from layerfs.formats.tar.header import BLOCK as BLOCK
from layerfs.formats.tar.member import Member as Member
from layerfs.formats.tar.member import split_path as split_path
from layerfs.formats.tar.reader import TarReader as TarReader
