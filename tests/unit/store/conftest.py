from typing import Any

import pytest
from store_rows import populate

from appliance.store.database import Store


@pytest.fixture
def rows(store: Store) -> dict[str, dict[str, Any]]:
    return populate(store)
