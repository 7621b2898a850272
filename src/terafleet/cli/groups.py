"""A group of commands that reads its options without loading what only checks values."""

from typing import Any

from typer.core import TyperGroup


class QuickGroup(TyperGroup):
    """Commands below a name, quick to show their help and to be completed."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the options before the command.

        A flag that is not given is False here and not None: to check a None the framework loads
        a library that takes longer than all the rest.
        """
        for parameter in self.get_params(ctx):
            if getattr(parameter, "is_flag", False) and parameter.default is None:
                parameter.default = False
        return super().parse_args(ctx, args)
