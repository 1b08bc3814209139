"""Numbers that several options are: each with bounds beyond which it could only be a slip of the pen.

Training computes in float32, which ends at 3e38. A factor of 1e308 would become infinity there, and the loss of the
next step would say so in other words. The bounds are far from what people use, and far from what breaks.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Factor = Annotated[float, Field(ge=1e-6, le=1e6)]  # something is multiplied with it, or divided by it
Amount = Annotated[float, Field(ge=0, le=1e6)]  # 0 is none
MOST_RATE = 100.0  # 2e4 is 2e-4 without its sign, and no optimizer learns at such a rate
Rate = Annotated[float, Field(ge=0, le=MOST_RATE)]  # of learning
Waves = Annotated[float, Field(gt=0, le=1000)]  # of a cosine in a run
