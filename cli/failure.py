"""How a failure is told: what happened, and what to do next."""


def tell_failure(detail: str, remedy: str) -> None:
    """Print a failure to standard error: the remedy, if there is one, on a line of its own."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(Text(f"✗ {detail}", style="bold red"))
    if remedy:
        console.print(Text(f"  {remedy}"))
