"""The commands of `dgunet`, a module each: `add(actions)` declares the arguments, `action` is what is run with them.

A module imports what its action needs inside of functions, so that help and wrong arguments answer without torch.
"""
