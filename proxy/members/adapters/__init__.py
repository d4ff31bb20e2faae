"""Adapters for objects of agent frameworks. Each module needs the packages of its extra, and is imported for them only.

``adapted(found, make)`` returns a member for an object, or None if the object is not an agent. ``make`` returns another
object like it, if the team file names a factory.
"""
