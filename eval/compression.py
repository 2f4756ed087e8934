"""What general compressors reach on the held-out text: the yardstick beside a model's bits per byte."""

import lzma
import zlib
from collections.abc import Iterable

_GZIP_FORMAT = 31
"""zlib's window bits for the largest window (15) in the gzip format (+16): a file with an 18-byte frame, no name."""


def compressed(documents: Iterable[bytes]) -> dict[str, float]:
    """Bits per byte of `documents`, joined as they come to one stream, under `"gzip -9"` and `"xz -9"`.

    Each is the size of the whole file, header and checksum included, as `gzip -9 -n` and `xz -9` would write it (zlib
    and gzip choose some matches differently, within about 0.1 %). One pass, nothing is kept in memory except the
    compressors' windows. Empty for an empty stream.
    """
    gzip = zlib.compressobj(9, zlib.DEFLATED, _GZIP_FORMAT)
    xz = lzma.LZMACompressor(preset=9)
    read = gzip_size = xz_size = 0
    for document in documents:
        read += len(document)
        gzip_size += len(gzip.compress(document))
        xz_size += len(xz.compress(document))
    if not read:
        return {}
    gzip_size += len(gzip.flush())
    xz_size += len(xz.flush())
    return {"gzip -9": 8 * gzip_size / read, "xz -9": 8 * xz_size / read}
