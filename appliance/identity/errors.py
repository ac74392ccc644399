"""What is wrong with the files that say whom to believe."""


class IdentityConfigurationError(Exception):
    """An issuers file or a public key cannot be used.

    The message names the file, the field and the rule, never a value. `code` is stable.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
