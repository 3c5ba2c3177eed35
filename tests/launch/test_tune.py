"""An imported model, trained through the command line, has the losses that torch has."""

import numpy as np
import pytest

from tests import torch_tune

# Of one another's float32 over 20 steps: 1e-6 was measured.
LOSS_ATOL = 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", torch_tune.LAYOUTS)
def test_every_step_has_the_loss_of_torch(tmp_path, name):
    expected = torch_tune.write_frozen(tmp_path, name)
    losses, batches = torch_tune.tune(name, tmp_path, "--config.mesh.data=8")
    assert len(losses) == len(batches) == torch_tune.NUM_STEPS
    np.testing.assert_allclose(losses, expected, rtol=0, atol=LOSS_ATOL)
