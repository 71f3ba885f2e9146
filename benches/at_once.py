"""Runs two commands at once, `--` between them, and prints the seconds until both have ended."""

import subprocess
import sys
import time


def main() -> None:
    """Fails where either fails."""
    middle = sys.argv.index("--")
    commands = sys.argv[1:middle], sys.argv[middle + 1 :]
    start = time.perf_counter()
    running = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for command in commands]
    codes = [process.wait() for process in running]
    print(time.perf_counter() - start)
    sys.exit(max(codes))


if __name__ == "__main__":
    main()
