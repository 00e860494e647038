"""The Space itself. Its files import each other relatively, so that the folder above runs alone on the Hub."""
