"""NVML as pynvml shows it, for machines without a driver: the functions that the reader calls, with the shapes and units of pynvml 13
(bytes, percent, milliwatts), for one H100. Written after its source, not recorded: no GPU was at hand.
"""

import threading
from types import SimpleNamespace

UUID = "GPU-5f2c9a7e-0d1b-4c55-9f0e-2f6f3a1b7c11"


class NVMLError(Exception):
    pass


class NVMLErrorNotSupported(NVMLError):
    pass


class FakeNvml:
    NVMLError = NVMLError
    NVMLError_NotSupported = NVMLErrorNotSupported

    def __init__(self) -> None:
        self.lost = False
        self.knows_power = True
        self.answers = threading.Event()
        """Cleared: the driver hangs."""
        self.answers.set()
        self.asked = threading.Event()
        self.readers = 0

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.readers += 1
        self.asked.set()
        assert self.answers.wait(30), "the test never let the driver go on"
        if self.lost:
            raise NVMLError("GPU is lost")
        if uuid != UUID:
            raise NVMLError("Not Found")
        return "handle"

    def nvmlDeviceGetIndex(self, handle: str) -> int:
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(total=85_520_809_984, used=71_940_702_208, free=13_580_107_776)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(gpu=97, memory=41)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        if not self.knows_power:
            raise NVMLErrorNotSupported("Not Supported")
        return 412_345
