"""Input noise: `policies` defines what may be applied, `plan` draws it, `ops` applies it to the pixels."""
