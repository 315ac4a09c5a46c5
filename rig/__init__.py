"""rig: does the page directory of a crashed kernel survive kexec?"""

__version__ = "0.1.0"
