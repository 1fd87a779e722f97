"""`python -m cli.fake_upstream`."""

from cli.fake_upstream.command import main

if __name__ == "__main__":
    main()
