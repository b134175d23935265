"""`opencode-connected cleanup`: removes what this user's killed instances left behind, and nothing else."""

import anyio

from opencode_mcp.connect.report import endpoint_of, opened, sentence
from opencode_mcp.connect.slots import left_behind
from opencode_mcp.state.places import state_directory
from opencode_mcp.state.records import Record

_SECONDS = 30.0


def cleanup() -> int:
    """Withdraw what is left of every instance whose process is gone; return 1 if something has to stay."""
    code = 0
    for slot, record in left_behind(state_directory()):
        removed, problems = anyio.run(_withdraw, record)
        for one in removed:
            print(f"{record.name}: removed {one}")
        for problem in problems:
            print(f"{record.name}: {problem}")
        if problems:
            code = 1
        else:
            slot.keep = None
            print(f"{record.name}: nothing is left")
    return code


async def _withdraw(record: Record) -> tuple[list[str], list[str]]:
    removed: list[str] = []
    problems: list[str] = []
    for name in record.places:
        try:
            with anyio.fail_after(_SECONDS):
                async with opened(name, record.places.get(name, "")) as transport:
                    removed.extend(await transport.withdraw(endpoint_of(record)))
        except TimeoutError:
            problems.append(f"transport {name} has not cleaned up within {_SECONDS:g} s")
        except Exception as error:  # foreign code: the others are to be asked all the same
            problems.append(f"transport {name}: {sentence(error)}")
    return removed, problems
