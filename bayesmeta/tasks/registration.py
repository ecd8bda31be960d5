"""Gymnasium ids of the single-task forms, such as ``gymnasium.make("bayesmeta/PointGoal-v1", task=[0.3, 0.4])``.

Importing ``bayesmeta.tasks`` registers them; ``gymnasium.make("bayesmeta.tasks:bayesmeta/PointGoal-v1")`` does both.
No simulator and no torch is loaded before an environment is made.
"""

from typing import Any

import gymnasium

# One thread: a single body has nothing to share out.
_BODY = {"threads": 1}

IDS: dict[str, tuple[str, dict[str, Any]]] = {
    "bayesmeta/PointGoal-v1": ("point_goal:PointGoal", {}),
    "bayesmeta/PointGoalSparse-v1": ("point_goal:PointGoal", {"sparse": True}),
    "bayesmeta/CheetahDir-v1": ("cheetah_dir:CheetahDir", _BODY),
    "bayesmeta/CheetahVel-v1": ("cheetah_vel:CheetahVel", _BODY),
    "bayesmeta/AntDir-v1": ("ant_dir:AntDir", _BODY),
    "bayesmeta/AntDirForwardBackward-v1": ("ant_dir:AntDir", {**_BODY, "forward_backward": True}),
    "bayesmeta/AntGoal-v1": ("ant_goal:AntGoal", _BODY),
    "bayesmeta/HumanoidDir-v1": ("humanoid_dir:HumanoidDir", _BODY),
    "bayesmeta/WalkerParams-v1": ("walker_params:WalkerParams", _BODY),
    "bayesmeta/HopperParams-v1": ("hopper_params:HopperParams", _BODY),
    "bayesmeta/SmallMap-v1": ("bus:Bus", {"variant": "small_map"}),
    "bayesmeta/Map-v1": ("bus:Bus", {"variant": "map"}),
    "bayesmeta/VanillaBus-v1": ("bus:Bus", {"variant": "vanilla"}),
    "bayesmeta/DistractingBus-v1": ("bus:Bus", {"variant": "distraction"}),
    "bayesmeta/Cooking-v1": ("cooking:Cooking", {}),
    "bayesmeta/Reveal-v1": ("reveal:Reveal", {}),
}
"""Id -> (module of ``bayesmeta.tasks`` : family, the arguments that the id fixes). Versions are those of the specs."""


def register() -> None:
    """Register every id that is not registered yet."""
    for name, (family, variant) in IDS.items():
        if name not in gymnasium.registry:
            kwargs = {"family": f"bayesmeta.tasks.{family}", "variant": variant}
            gymnasium.register(name, entry_point="bayesmeta.tasks.single_task:make_single_task", kwargs=kwargs)
