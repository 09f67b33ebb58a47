"""The methods of the zoo against recorded outputs of their published implementations: a folder for each."""
