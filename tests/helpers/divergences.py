"""Divergences in float64, with their gradients in closed form."""

import numpy as np


def log_softmax64(logits):
    """Return the log-probabilities of logits, float64."""
    logits = np.asarray(logits, np.float64)
    return logits - np.logaddexp.reduce(logits, -1, keepdims=True)


def reference64(name, share, p_logp, q_logp):
    """(value, gradient with respect to log q) in float64, whose rounding is far below the smallest share."""
    p, q = np.exp(p_logp), np.exp(q_logp)
    if name == "forward_kl":
        return (p * (p_logp - q_logp)).sum(-1), -p
    if name == "reverse_kl":
        return (q * (q_logp - p_logp)).sum(-1), q * (q_logp - p_logp + 1)
    if name == "total_variation":
        return np.abs(p - q).sum(-1) / 2, np.sign(q - p) * q / 2
    if name == "taid":  # `share` is t; the target has no gradient
        target_logp = log_softmax64(np.where(share < 1, (1 - share) * q_logp, 0.0) + share * p_logp)
        target = np.exp(target_logp)
        return (target * (target_logp - q_logp)).sum(-1), -target
    first, second = (q_logp, p_logp) if name == "skewed_reverse_kl" else (p_logp, q_logp)
    log_m = np.logaddexp(np.log(share) + first, np.log1p(-share) + second)
    if name == "jensen_shannon":
        value = share * p * (p_logp - log_m) + (1 - share) * q * (q_logp - log_m)
        return value.sum(-1), (1 - share) * q * (q_logp - log_m)
    if name == "skewed_forward_kl":
        return (p * (p_logp - log_m)).sum(-1), -(1 - share) * p * np.exp(q_logp - log_m)
    return (q * (q_logp - log_m)).sum(-1), q * (q_logp - log_m + (1 - share) * np.exp(p_logp - log_m))
