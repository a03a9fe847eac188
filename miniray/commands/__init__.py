"""The sub-commands of `miniray`, one file each; `miniray.cli` names them and imports on demand."""
