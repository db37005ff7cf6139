"""A worker that ends badly: by a segmentation fault, by an exception, or not at all."""

import ctypes
import sys
import time


def crash() -> None:
    ctypes.string_at(0)


if __name__ == "__main__":
    if sys.argv[1] == "crash":
        crash()
    if sys.argv[1] == "raise":
        raise ValueError("this is why")
    time.sleep(60)
