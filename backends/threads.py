"""How worker threads wait, settled before torch starts any: every package of ours imports it first.

OpenMP's threads look again and again for the next piece of work before they sleep, some 10 ms by
default. A decode step of the emulator has hundreds of pieces, so beside other work on the same
cores each of them waited for a thread that only looked. A short look loses nothing on an idle
machine and little on a busy one. What the user has set stays; a torch that is already imported has
read its settings.
"""

from __future__ import annotations

import os

LOOKS = 1000  # tens of microseconds: most pieces of a step follow one another within that
OWN_CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")

if not any(name in os.environ for name in OWN_CHOICES):
    os.environ["GOMP_SPINCOUNT"] = str(LOOKS)
