"""The door of the page: python app.py, on a laptop, a workstation or a Space. --help lists what can be set."""

from __future__ import annotations

import argparse
import os
import sys

import studio
from studio.access import AccessError, parse_auth
from studio.workspace import WorkspaceError
from trainers.errors import named


def main() -> int:
    """Open the studio and stay until it is interrupted."""
    on_space = "SPACE_ID" in os.environ
    parser = argparse.ArgumentParser(description="Dailies: a studio for fine-tuning video diffusion models.")
    add = parser.add_argument
    add(
        "--workspace",
        default=os.environ.get("DAILIES_WORKSPACE", "workspace"),
        help="folder of datasets, models and runs",
    )
    add(
        "--host",
        default="0.0.0.0" if on_space else "127.0.0.1",
        help="address to listen on; beyond 127.0.0.1 needs a login",
    )
    add("--port", type=int, default=None, help="port to listen on, or the next free one (default 7860)")
    add("--share", action="store_true", help="also open a public link through Gradio's tunnel; needs a login")
    add("--auth", metavar="NAME:PASSWORD", default=os.environ.get("DAILIES_AUTH"), help="login (or DAILIES_AUTH)")
    add("--devices", help="devices that run jobs, such as cuda:0,cuda:1 or cpu (default: all that are found)")
    add("--max-upload", default="2gb", metavar="SIZE", help="largest upload (default 2gb)")
    add("--no-browser", action="store_true", help="do not open a browser")
    args = parser.parse_args()
    try:
        handle = studio.launch(
            args.workspace,
            share=args.share,
            auth=parse_auth(args.auth) if args.auth else None,
            port=args.port,
            host=args.host,
            devices=args.devices.split(",") if args.devices else None,
            inline=False,
            browser=sys.stdout.isatty() and not (args.no_browser or args.share or on_space),
            max_file_size=args.max_upload,
        )
    except (AccessError, WorkspaceError, OSError) as error:
        print(f"Dailies cannot open: {named(error)}", file=sys.stderr)
        return 2
    handle.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
