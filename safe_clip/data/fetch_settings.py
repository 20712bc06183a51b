"""How images are fetched, apart from what does so, which is slow to import."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FetchSettings:
    """How patient, and how careful.

    Attributes:
        tries: of each address, where what goes wrong may pass; with 0, only what is kept already is had.
        timeout: seconds for one try, from asking to the last byte.
        most_bytes: of one image, as it is sent and unpacked.
        at_once: addresses fetched side by side.
        allow_private: fetch from addresses inside the network too, such as 192.168.0.1.
        wait: seconds before the second try, doubled before each further one.
    """

    tries: int = 4
    timeout: float = 30.0
    most_bytes: int = 20_000_000
    at_once: int = 16
    allow_private: bool = False
    wait: float = 1.0
