"""Only here to refuse a wheel: embedmill is an application that is started from its checkout.

Its packages have generic names (`api`, `models`, `workers`), so an installed wheel would shadow other packages of those
names, or be shadowed by them. `make install` makes an editable install, which points to the checkout and copies none.
"""

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel


class CheckoutOnly(bdist_wheel):
    """Refuses to build a wheel; an editable install uses this class for its metadata only and never runs it."""

    def run(self) -> None:
        raise SystemExit(
            "embedmill is not installed as a wheel: it runs from a checkout. In the checkout, `make install` "
            "prepares it and `make up` starts it; `pip install --editable .` works too. See README.md."
        )


setup(cmdclass={"bdist_wheel": CheckoutOnly})
