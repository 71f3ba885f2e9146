"""The floor of a cold read: read all bytes of a folder past the page cache, and drop them.

Arguments: the folder, the threads, and the block size in MiB. Prints the seconds.
"""

import mmap
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import local

own = local()


def main() -> None:
    """Read everything once."""
    folder, threads, block = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) << 20
    start = time.perf_counter()
    files, pieces = [], []
    for path in sorted(folder.iterdir()):
        files.append(os.open(path, os.O_RDONLY | os.O_DIRECT))
        pieces += [(files[-1], offset) for offset in range(0, path.stat().st_size, block)]

    def read(piece: tuple[int, int]) -> None:
        if not hasattr(own, "buffer"):
            own.buffer = mmap.mmap(-1, block)  # O_DIRECT requires alignment; a map starts at a page
        os.preadv(piece[0], [own.buffer], piece[1])

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(read, pieces):
            pass
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main()
