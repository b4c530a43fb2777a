"""What an error of S3 means: whether it passes, and the sentence that a person reads.

Only codes and addresses go into a sentence, never the store's own message or a request, which may hold key ids.
"""

from __future__ import annotations

import botocore.exceptions as boto

from nextflow_data.storage.errors import StoreError, StoreRefused

EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"})
_PASSING = frozenset(
    {
        "BandwidthLimitExceeded",
        "ConditionalRequestConflict",
        "InternalError",
        "OperationAborted",
        "RequestLimitExceeded",
        "RequestTimeout",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
    }
)
_MISSING = frozenset({"NoSuchKey", "NoSuchVersion", "404", "NotFound"})
_SECRETS = {
    "SignatureDoesNotMatch": "the secret does not belong to the access key in use",
    "InvalidAccessKeyId": "the store does not know the access key in use",
    "InvalidToken": "the session token in use is not valid",
    "InvalidClientTokenId": "the access key in use is not known",
}


def code(error: Exception) -> str:
    """The store's code of an error, as in NoSuchKey; of a HEAD, which has no body, its status; "" without an answer."""
    return str(error.response.get("Error", {}).get("Code", "")) if isinstance(error, boto.ClientError) else ""


def status(error: Exception) -> int:
    """The HTTP status of an error; 0 where the store did not answer."""
    metadata = error.response.get("ResponseMetadata", {}) if isinstance(error, boto.ClientError) else {}
    return int(metadata.get("HTTPStatusCode", 0))


def passing(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, boto.ClientError):
        return code(error) in _PASSING or (status(error) >= 500 and status(error) != 501) or status(error) == 429
    return isinstance(error, (boto.HTTPClientError, boto.ConnectionError, boto.IncompleteReadError))


def sentence(error: Exception, address: str, action: str, attempts: int, endpoint: str | None) -> OSError:
    """The error to raise for one of boto3's. `action` is the permission that the request needs, as in s3:GetObject."""
    found, at = code(error), f" at {endpoint}" if endpoint else ""
    bucket = address.split("/")[2]
    if found == "NoSuchBucket":
        return StoreRefused(
            f"{address}: there is no bucket {bucket}{at}; make it, or correct the address, endpoint or region"
        )
    if found in _MISSING:
        return FileNotFoundError(f"{address}: there is no such object")
    if found in EXPIRED:
        return StoreError(
            f"{address}: the credentials in use have expired; renew them and run again: all that was committed is kept"
        )
    if found in _SECRETS:
        return StoreRefused(
            f"{address}: {_SECRETS[found]}{at} ({found}); correct the credentials (environment, profile or role)"
        )
    if found == "RequestTimeTooSkewed":
        return StoreRefused(f"{address}: this machine's clock differs too much from the store's; set it right")
    if found in ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "301"):
        return StoreRefused(f"{address}: bucket {bucket} is in another region; set storage.s3.region ({found})")
    if status(error) == 403:
        return PermissionError(
            f"{address}: not allowed: the credentials in use need {action} on it"
            + (f", or s3:ListBucket on {bucket} if there is no such object" if action == "s3:GetObject" else "")
        )
    if found == "BadDigest":
        return StoreError(f"{address}: the bytes were damaged on their way to the store, which refused them (BadDigest)")
    if isinstance(error, boto.ClientError):
        tried = f" after {attempts} attempts" if passing(error) else ""
        return StoreError(f"{address}: the store{at} answered {status(error)} {found}{tried} to a request for {action}")
    if isinstance(error, (boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.SSLError, boto.ProxyConnectionError)):
        return StoreError(
            f"{address}: the store{at} cannot be reached ({type(error).__name__}, {attempts} attempts); "
            "is storage.s3.endpoint right, does it run, is there a network?"
        )
    if passing(error):
        return StoreError(f"{address}: the store{at} broke off {attempts} times ({type(error).__name__})")
    if isinstance(error, (boto.NoCredentialsError, boto.PartialCredentialsError, boto.ProfileNotFound)):
        return StoreRefused(
            f"{address}: there are no whole credentials for it ({type(error).__name__}); set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, storage.s3.profile, or give the machine a role"
        )
    return StoreError(f"{address}: the request could not be made ({type(error).__name__})")
