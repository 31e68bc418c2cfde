"""The environment of every Prefect process: server, worker, flow runs, and the deploying client.

Prefect is configured by variables alone, so that a checkout needs no profile of the user's.
"""

from fleet.settings import Settings

# Between a worker's looks: a call home must not wait for the next one for long.
_WORKER_QUERY_SECONDS = "0.25"


def prefect_environment(settings: Settings) -> dict[str, str]:
    """Variables for a child process; secrets among them are left out unless they are set."""
    variables = {
        "PREFECT_HOME": str(settings.home / "prefect"),
        "PREFECT_PROFILES_PATH": str(settings.home / "prefect" / "profiles.toml"),
        "PREFECT_API_URL": f"{settings.prefect_url}/api",
        "PREFECT_SERVER_API_HOST": settings.prefect_host,
        "PREFECT_SERVER_API_PORT": str(settings.prefect_port),
        "PREFECT_SERVER_UI_API_URL": "/api",
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": settings.prefect_url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "DO_NOT_TRACK": "1",
        # Two requests that every client would send first, to a server that is ours and of its age.
        "PREFECT_CLIENT_SERVER_VERSION_CHECK_ENABLED": "false",
        "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false",
        "PREFECT_LOGGING_TO_API_BATCH_INTERVAL": "1",
        # On, it would call a run cancelled whose process then begins all the same.
        "PREFECT_WORKER_ENABLE_CANCELLATION": "false",
        "PREFECT_LOGGING_COLORS": "false",
        "PREFECT_WORKER_QUERY_SECONDS": _WORKER_QUERY_SECONDS,
    }
    if settings.prefect_auth_string is not None:
        secret = settings.prefect_auth_string.get_secret_value()
        variables["PREFECT_SERVER_API_AUTH_STRING"] = secret
        variables["PREFECT_API_AUTH_STRING"] = secret
    if settings.prefect_database_url is not None:
        url = settings.prefect_database_url.get_secret_value()
        variables["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = url
    return variables
