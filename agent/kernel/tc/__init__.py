"""Traffic control: the root qdiscs, the classes of the accounts, and what `tc` would print of one."""

from agent.kernel.tc.shaper import Classes, Qdiscs, class_text, root_text

__all__ = ["Classes", "Qdiscs", "class_text", "root_text"]
