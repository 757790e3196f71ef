"""Pure data: references, documents, archives and trees as bytes; nothing here opens a file or reads the clock."""
