"""Reading an HDF5 file that somebody else made, in Python alone.

HDF5's own library is C. A crafted file can end it by a signal, make it open other files of the
machine, load plug-ins, hang, or allocate what a header claims. It writes stores and is never shown
one. What is read here is only what `write_store` writes, all else is refused: superblock 2 or 3,
object headers of version 2, compact links, chunks that are found by one address or by a fixed
array, and Fletcher's checksum (HDF5 file format specification, version 3.0).
"""
