"""Every error that the client raises on purpose, but for the ValueError of an argument that cannot be sent.

ClientError
├── NoAnswerError         no answer: no connection, it broke, or it took too long
├── ProblemError          the service says why it cannot answer this
└── StrangeAnswerError    something else than this service answered
"""


class ClientError(Exception):
    """The service was asked and there is no answer to be used. The message shows no token and no password."""


class NoAnswerError(ClientError):
    """The service did not answer.

    Attributes: `url`, without user and password; `why`, in words.
    """

    def __init__(self, url: str, why: str) -> None:
        super().__init__(f"no answer from {url}: {why}")
        self.url = url
        self.why = why


class ProblemError(ClientError):
    """The service says why it cannot answer, as `application/problem+json` (RFC 9457).

    Attributes: `status`, `title` and `detail` as it said them; `retry_after_s`, when to ask again, where it said that.
    """

    def __init__(self, status: int, title: str, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{status} {title}: {detail}")
        self.status = status
        self.title = title
        self.detail = detail
        self.retry_after_s = retry_after_s


class StrangeAnswerError(ClientError):
    """Something answered that this service would not say: a proxy, or another service.

    Attributes: `url`, without user and password; `status`, of HTTP.
    """

    def __init__(self, url: str, status: int) -> None:
        super().__init__(f"{url} answered {status} with something that no kv-indexer says; is it the service's address?")
        self.url = url
        self.status = status
