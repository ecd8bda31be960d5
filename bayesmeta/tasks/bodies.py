"""The bodies of the MuJoCo families: gymnasium's v5 models, seen as the published meta-RL tasks see them.

Contact forces (``cfrc_ext``) are in none of them: a batch step does not compute them, and under the simulators most
published numbers come from they were all zero anyway.
"""

import dataclasses

import numpy as np

from bayesmeta.tasks.mujoco import Body, Live


def observe_cheetah(live: Live, out: np.ndarray) -> None:
    """Positions but x, velocities, and the torso's x, y, z: 8 + 9 + 3."""
    out[:, :8] = live["qpos"][:, 1:]
    out[:, 8:17] = live["qvel"]
    out[:, 17:] = live["xpos"][:, 1]


def observe_ant(live: Live, out: np.ndarray) -> None:
    """Positions but x and y, and velocities: 13 + 14."""
    out[:, :13] = live["qpos"][:, 2:]
    out[:, 13:] = live["qvel"]


def observe_ant_with_position(live: Live, out: np.ndarray) -> None:
    """All positions and velocities: 15 + 14."""
    out[:, :15] = live["qpos"]
    out[:, 15:] = live["qvel"]


def observe_humanoid(live: Live, out: np.ndarray) -> None:
    """Positions but x and y, velocities, body inertias and velocities, joint torques: 22 + 23 + 130 + 78 + 17."""
    rows = len(out)
    out[:, :22] = live["qpos"][:, 2:]
    out[:, 22:45] = live["qvel"]
    out[:, 45:175] = live["cinert"][:, 1:].reshape(rows, -1)  # body 0 is the world, all zeros
    out[:, 175:253] = live["cvel"][:, 1:].reshape(rows, -1)
    out[:, 253:] = live["qfrc_actuator"][:, 6:]  # the root has no motors


def observe_planar(live: Live, out: np.ndarray) -> None:
    """Positions but x, and velocities clipped to [-10, 10]: of the walker 8 + 9, of the hopper 5 + 6."""
    positions = live["qpos"].shape[1] - 1
    out[:, :positions] = live["qpos"][:, 1:]
    np.clip(live["qvel"], -10.0, 10.0, out=out[:, positions:], casting="same_kind")


def root_x(live: Live) -> np.ndarray:
    """The root's x, current."""
    return live["qpos"][:, :1]


def torso_xy(live: Live) -> np.ndarray:
    """The torso's x and y, before the last simulator step (as gymnasium's and the published ants measure it)."""
    return live["xpos"][:, 1, :2]


def centre_of_mass_xy(live: Live) -> np.ndarray:
    """x and y of the whole body's centre of mass, before the last simulator step."""
    return live["subtree_com"][:, 1, :2]


def ant_healthy(live: Live) -> np.ndarray:
    """0.2 <= z <= 1."""
    z = live["qpos"][:, 2]
    return (z >= 0.2) & (z <= 1.0)


def humanoid_healthy(live: Live) -> np.ndarray:
    """1 < z < 2."""
    z = live["qpos"][:, 2]
    return (z > 1.0) & (z < 2.0)


def walker_healthy(live: Live) -> np.ndarray:
    """0.8 < z < 2 and a torso angle below 1 rad."""
    z, angle = live["qpos"][:, 1], live["qpos"][:, 2]
    return (z > 0.8) & (z < 2.0) & (np.abs(angle) < 1.0)


def hopper_healthy(live: Live) -> np.ndarray:
    """z > 0.7, a torso angle below 0.2 rad, and no angle or velocity beyond 100."""
    z, angle = live["qpos"][:, 1], live["qpos"][:, 2]
    bounded = (np.abs(live["qpos"][:, 2:]) < 100.0).all(1) & (np.abs(live["qvel"]) < 100.0).all(1)
    return bounded & (z > 0.7) & (np.abs(angle) < 0.2)


CHEETAH = Body(
    xml="half_cheetah.xml",
    frame_skip=5,
    obs_dim=20,
    action_dim=6,
    reset_noise=0.1,
    normal_velocity=True,
    derived=("xpos",),
    observe=observe_cheetah,
    track=root_x,
)
ANT = Body(
    xml="ant.xml",
    frame_skip=5,
    obs_dim=27,
    action_dim=8,
    reset_noise=0.1,
    normal_velocity=True,
    derived=("xpos",),
    observe=observe_ant,
    track=torso_xy,
    healthy=ant_healthy,
)
ANT_WITH_POSITION = dataclasses.replace(ANT, obs_dim=29, observe=observe_ant_with_position, healthy=None)
HUMANOID = Body(
    xml="humanoid.xml",
    frame_skip=5,
    obs_dim=270,
    action_dim=17,
    reset_noise=0.01,
    normal_velocity=False,
    derived=("cinert", "cvel", "qfrc_actuator", "subtree_com"),
    observe=observe_humanoid,
    track=centre_of_mass_xy,
    healthy=humanoid_healthy,
)
WALKER = Body(
    xml="walker2d_v5.xml",
    frame_skip=4,
    obs_dim=17,
    action_dim=6,
    reset_noise=0.005,
    normal_velocity=False,
    derived=(),
    observe=observe_planar,
    track=root_x,
    healthy=walker_healthy,
)
HOPPER = Body(
    xml="hopper.xml",
    frame_skip=4,
    obs_dim=11,
    action_dim=3,
    reset_noise=0.005,
    normal_velocity=False,
    derived=(),
    observe=observe_planar,
    track=root_x,
    healthy=hopper_healthy,
)
