"""Flower: a strategy whose server takes RMSprop steps, like its FedAdagrad and FedAdam.

The gradient of a round is the negative of the mean change that clients send.  The server keeps its
own arrays, which are updated in place; what clients send is never a variable.
"""

import numpy as np
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.strategy import FedAdam, FedOpt

import rmsjit
from comparison import report

# --- glue ---


class FedRMSprop(FedOpt):
    """Federated RMSprop; arguments but the first are those of ``FedOpt``."""

    def __init__(self, optimizer, **options):
        super().__init__(**options)
        self.optimizer = optimizer
        self.current_weights = [weights.copy() for weights in self.current_weights]  # writeable

    def aggregate_fit(self, server_round, results, failures):
        mean, metrics = super().aggregate_fit(server_round, results, failures)
        if mean is None:
            return None, {}
        gradients = [
            own - new
            for own, new in zip(self.current_weights, parameters_to_ndarrays(mean), strict=True)
        ]
        self.optimizer.step(self.current_weights, gradients)
        return ndarrays_to_parameters(self.current_weights), metrics


# --- the program ---

START = [np.zeros((3, 2)), np.zeros(2)]
ETA, BETA = 0.1, 0.9


def train(strategy):
    """Thirty rounds of two clients with targets of their own, as Flower's server runs them."""
    parameters = ndarrays_to_parameters(START)
    for server_round in range(1, 31):
        results = []
        for target, examples in [(1.0, 10), (3.0, 30)]:
            own = parameters_to_ndarrays(parameters)
            sent = ndarrays_to_parameters([w + 0.5 * (target - w) for w in own])
            results.append((None, FitRes(Status(Code.OK, ""), sent, examples, {})))
        parameters, _ = strategy.aggregate_fit(server_round, results, [])
    return parameters_to_ndarrays(parameters)


def main():
    # FedAdam without a first moment is RMSprop with a rate that is corrected for the start.
    theirs = FedAdam(
        initial_parameters=ndarrays_to_parameters(START),
        eta=ETA,
        beta_1=0.0,
        beta_2=BETA,
        tau=1e-7,
    )
    optimizer = rmsjit.RMSprop(lambda step: ETA * np.sqrt(1 - BETA ** (step + 2)), rho=BETA)
    ours = FedRMSprop(optimizer, initial_parameters=ndarrays_to_parameters(START))
    report("FedAdam(beta_1=0)", train(ours), train(theirs))


if __name__ == "__main__":
    main()
