"""An MLflow that remembers its calls."""

import sys
import types


def fake_mlflow(monkeypatch, **functions):
    """Takes the module's place; the list that is returned grows by (name, positional, named arguments) of each call."""
    calls = []
    module = types.ModuleType("mlflow")
    for name in ("set_tracking_uri", "set_experiment", "start_run", "log_params", "log_metrics", "end_run"):
        record = functions.get(name, lambda *a, _name=name, **k: calls.append((_name, a, k)))
        setattr(module, name, record)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return calls
