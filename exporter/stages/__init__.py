"""The stages of a compile: what each takes, makes and holds to eager."""
