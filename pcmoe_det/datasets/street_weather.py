"""Light and weather of a shot over its time, and the attributes SHIFT gives them.

Fractions of a shot are turned into conditions by interpolating between named states, as SHIFT's
continuous shifts do; the conditions give the light that surfaces get and the fog in between.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pcmoe_det.errors import UsageError

__all__ = [
    "SHIFTS",
    "Conditions",
    "Light",
    "Shift",
    "conditions_at",
    "frame_attributes",
    "make_light",
    "pick_shift",
]

Shift = Literal[
    "clear", "cloudy", "overcast", "rainy", "foggy", "dusk", "night", "night_rainy", "night_foggy",
    "daytime_to_night", "night_to_daytime", "clear_to_foggy", "clear_to_rainy",
    "daytime_to_night_to_foggy", "random",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Conditions:
    """Weather and time of day; the scales are those of SHIFT's frame attributes.

    Attributes:
        sun_altitude: Degrees above the horizon, negative at night.
        cloudiness: 0-100.
        precipitation: 0-100.
        wetness: Of the road, 0-100.
        fog_density: 0-100.
    """

    sun_altitude: float
    cloudiness: float
    precipitation: float
    wetness: float
    fog_density: float


_STATES = {
    "clear": Conditions(48, 8, 0, 0, 1),
    "cloudy": Conditions(40, 55, 0, 0, 2),
    "overcast": Conditions(35, 95, 0, 5, 4),
    "rainy": Conditions(30, 98, 70, 85, 9),
    "foggy": Conditions(24, 90, 0, 10, 62),
    "dusk": Conditions(2.5, 30, 0, 0, 3),
    "night": Conditions(-12, 30, 0, 0, 2),
    "night_rainy": Conditions(-12, 95, 65, 90, 8),
    "night_foggy": Conditions(-12, 90, 0, 10, 42),
}
_COURSES: dict[str, tuple[str, ...]] = {
    **{name: (name,) for name in _STATES},
    "daytime_to_night": ("clear", "dusk", "night"),
    "night_to_daytime": ("night", "dusk", "clear"),
    "clear_to_foggy": ("clear", "overcast", "foggy"),
    "clear_to_rainy": ("clear", "overcast", "rainy"),
    "daytime_to_night_to_foggy": ("clear", "dusk", "night", "night_foggy"),
}
SHIFTS: tuple[str, ...] = (*_COURSES, "random")
"""Every accepted name of a shift."""


def pick_shift(rng: np.random.Generator, shift: str) -> str:
    """The shift itself, or one drawn from ``rng`` for ``random``.

    Raises:
        UsageError: An unknown name.
    """
    if shift not in SHIFTS:
        raise UsageError(f"unknown shift '{shift}'; choose one of {', '.join(SHIFTS)}")
    if shift != "random":
        return shift
    names = list(_COURSES)
    weight = np.array([3.0 if name in ("clear", "cloudy", "overcast") else 1.0 for name in names])
    return str(rng.choice(names, p=weight / weight.sum()))


def conditions_at(shift: str, fraction: float) -> Conditions:
    """Conditions of ``shift`` at ``fraction`` (0-1) of the shot; a tenth of it rests at either end."""
    states = [_STATES[name] for name in _COURSES[shift]]
    if len(states) == 1:
        return states[0]
    place = min(max((fraction - 0.1) / 0.8, 0.0), 1.0) * (len(states) - 1)
    index = min(int(place), len(states) - 2)
    rest = place - index
    smooth = rest
    first, second = states[index], states[index + 1]
    mixed = {
        f.name: getattr(first, f.name) * (1 - smooth) + getattr(second, f.name) * smooth
        for f in fields(Conditions)
    }
    return Conditions(**mixed)


def frame_attributes(conditions: Conditions, *, view: str, town: str, sun_azimuth: float) -> dict[str, str]:
    """SHIFT's frame attributes; every value is a string there."""
    c = conditions
    if c.fog_density >= 18:
        weather, weather_fine = "foggy", "heavy fog" if c.fog_density >= 40 else "small fog"
    elif c.precipitation >= 12:
        weather = "rainy"
        weather_fine = (
            "small rain" if c.precipitation < 30 else "mid rain" if c.precipitation < 60 else "heavy rain"
        )
    elif c.cloudiness >= 80:
        weather = weather_fine = "overcast"
    elif c.cloudiness >= 20:
        weather, weather_fine = "cloudy", "slight cloudy" if c.cloudiness < 45 else "partly cloudy"
    else:
        weather = weather_fine = "clear"
    if c.sun_altitude < 0:
        time, time_fine = "night", "night" if c.sun_altitude > -9 else "dark night"
    elif c.sun_altitude < 8:
        time, time_fine = "dawn/dusk", "sunrise/sunset"
    else:
        time, time_fine = "daytime", "noon" if c.sun_altitude >= 40 else "morning/afternoon"
    return {
        "weather_coarse": weather,
        "timeofday_coarse": time,
        "weather_fine": weather_fine,
        "timeofday_fine": time_fine,
        "view": view,
        "town": town,
        "sun_altitude_angle": f"{c.sun_altitude:.1f}",
        "cloudiness": f"{c.cloudiness:.1f}",
        "precipitation": f"{c.precipitation:.1f}",
        "precipitation_deposits": f"{c.wetness:.1f}",
        "wind_intensity": f"{10 + 0.4 * c.precipitation:.1f}",
        "sun_azimuth_angle": f"{math.degrees(sun_azimuth) % 360:.1f}",
        "fog_density": f"{c.fog_density:.1f}",
        "fog_distance": "0.75",
        "wetness": f"{c.wetness:.1f}",
        "fog_falloff": "0.1",
    }


@dataclass(frozen=True, slots=True, eq=False)
class Light:
    """What the conditions mean for colours; BGR factors on surface colour unless said otherwise.

    Attributes:
        ambient: ``[3]`` from the whole sky.
        sun: ``[3]`` on a surface that faces the sun.
        sun_direction: ``[3]`` unit vector towards the sun (or moon).
        zenith: ``[3]`` colour of the sky overhead, 0-255.
        horizon: ``[3]`` colour of sky and fog at the horizon, 0-255.
        cloud: ``[3]`` colour of clouds, 0-255.
        cloud_cover: 0-1.
        extinction: Per metre.
        lamps: 0-1, how far street lamps, windows and headlights are on.
        rain: 0-1.
        wet: 0-1.
    """

    ambient: NDArray[np.float64]
    sun: NDArray[np.float64]
    sun_direction: NDArray[np.float64]
    zenith: NDArray[np.float64]
    horizon: NDArray[np.float64]
    cloud: NDArray[np.float64]
    cloud_cover: float
    extinction: float
    lamps: float
    rain: float
    wet: float


# Sun altitude (degrees) against ambient, sun, zenith, horizon, cloud: chosen by eye beside photographs.
_ALTITUDES = np.array([-14.0, -6.0, -1.0, 3.0, 9.0, 25.0, 60.0])
_AMBIENT = np.array(
    [
        [0.19, 0.15, 0.135],
        [0.27, 0.215, 0.195],
        [0.40, 0.34, 0.32],
        [0.50, 0.45, 0.45],
        [0.56, 0.53, 0.52],
        [0.62, 0.585, 0.56],
        [0.63, 0.60, 0.575],
    ]
)
_SUN = np.array(
    [
        [0, 0, 0],
        [0, 0, 0],
        [0.02, 0.05, 0.09],
        [0.14, 0.25, 0.36],
        [0.27, 0.38, 0.46],
        [0.38, 0.44, 0.48],
        [0.42, 0.46, 0.48],
    ]
)
_ZENITH = np.array(
    [
        [26, 17, 13],
        [52, 34, 26],
        [110, 80, 66],
        [160, 126, 104],
        [196, 150, 112],
        [206, 152, 98],
        [202, 140, 78],
    ]
)
_HORIZON = np.array(
    [
        [38, 33, 33],
        [70, 62, 70],
        [112, 118, 160],
        [150, 172, 218],
        [200, 208, 224],
        [224, 222, 214],
        [232, 226, 214],
    ]
)
_CLOUD = np.array(
    [
        [44, 38, 38],
        [74, 62, 66],
        [120, 112, 140],
        [170, 176, 206],
        [222, 226, 234],
        [242, 243, 243],
        [248, 248, 248],
    ]
)


def _at(altitude: float, table: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([np.interp(altitude, _ALTITUDES, table[:, channel]) for channel in range(3)])


def make_light(
    conditions: Conditions, *, sun_azimuth: float, exposure: float, tint: NDArray[np.float64]
) -> Light:
    """The light of ``conditions``; ``exposure`` and ``tint`` (``[3]``, about 1) are the shot's style."""
    c = conditions
    altitude = c.sun_altitude
    cover = float(np.clip((c.cloudiness - 40) / 55, 0, 1))
    ambient, sun, zenith, horizon, cloud = (
        _at(altitude, t) for t in (_AMBIENT, _SUN, _ZENITH, _HORIZON, _CLOUD)
    )
    ambient = ambient + sun * 0.45 * cover * np.array([1.0, 0.95, 0.92])
    ambient *= 1 - 0.16 * c.precipitation / 100
    sun = sun * (1 - cover) ** 1.2
    grey_sky = horizon.mean() * np.array([0.93, 0.92, 0.90]) * (1 - 0.2 * c.precipitation / 100)
    zenith = zenith * (1 - cover) + grey_sky * 0.88 * cover
    horizon = horizon * (1 - cover) + grey_sky * cover
    cloud = cloud * (1 - cover) + grey_sky * 0.95 * cover
    # Fog density 100 is seen through for about 25 m; a little haze is always there.
    extinction = 0.0011 + 0.055 * (c.fog_density / 100) ** 1.35 + 0.004 * c.precipitation / 100
    height = math.radians(max(altitude, 14.0))
    direction = np.array(
        [math.sin(sun_azimuth) * math.cos(height), math.sin(height), math.cos(sun_azimuth) * math.cos(height)]
    )
    lamps = float(np.clip((5.0 - altitude) / 8.0, 0, 1))
    scale = exposure * tint
    return Light(
        ambient * scale,
        sun * scale,
        direction,
        np.clip(zenith * tint, 0, 255),
        np.clip(horizon * tint, 0, 255),
        np.clip(cloud * tint, 0, 255),
        float(np.clip(c.cloudiness / 100, 0, 1)),
        extinction,
        lamps,
        float(np.clip((c.precipitation - 8) / 80, 0, 1)),
        c.wetness / 100,
    )
