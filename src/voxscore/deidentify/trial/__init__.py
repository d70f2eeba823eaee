"""De-identification put to the test: identifiers planted where they may occur, and those that got through counted."""
