"""Why a prompt matches as far as it does: reasons and hints. Pure."""
