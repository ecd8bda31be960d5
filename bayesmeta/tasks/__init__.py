"""Families of tasks, one file each. Importing the package registers their single-task forms with gymnasium."""

from bayesmeta.tasks.registration import register

register()
