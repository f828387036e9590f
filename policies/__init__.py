"""The built-in policies, as YAML files beside this one. Import this as `apl_guard.policies`."""
