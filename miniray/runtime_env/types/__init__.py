"""Fields of a runtime environment as dataclasses: `RuntimeEnv().set("pip", Pip(packages=[...]))`."""
