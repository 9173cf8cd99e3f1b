import pytest
from pydantic import TypeAdapter, ValidationError

from resnet_jax.data import Data, Photographs, Resident
from resnet_jax.data.crops import RandomResized, ScaleJitter
from resnet_jax.errors import UserError


def test_the_kind_tells_data_sets_apart():
    parse = TypeAdapter(Data).validate_python
    assert parse({"kind": "resident", "name": "mnist"}) == Resident(name="mnist")
    found = parse({"kind": "photographs", "crop": {"name": "random_resized", "area": (0.1, 1.0)}})
    assert found == Photographs(crop=RandomResized(area=(0.1, 1.0)))
    for unknown in ({"kind": "video"}, {"name": "mnist"}):
        with pytest.raises(ValidationError):
            parse(unknown)


def test_small_images_are_a_user_error_that_names_the_kind():
    with pytest.raises(UserError, match=r"^config\.data\.name is 'digits', .* set config\.data\.kind=resident$"):
        Photographs(name="digits").load()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"eval_shorter_side": 200}, "eval_shorter_side 200 is below crop_size 224; raise it"),
        ({"crop": ScaleJitter(shorter_side=(200, 480))}, "begins below crop_size 224; raise it"),
        ({"crop_size": 0}, "crop_size"),
        ({"max_unreadable": -1}, "max_unreadable"),
        ({"threads": -1}, "threads"),
        ({"workers": 0.5}, "workers"),
        ({"holdout": 5}, "holdout"),
    ],
)
def test_settings_that_do_not_go_together_or_are_out_of_range_are_refused(setting, message):
    with pytest.raises(ValidationError, match=message):
        Photographs(**setting)


def test_a_range_below_the_crop_is_no_fault_where_it_is_not_read():
    Photographs(crop=RandomResized(), crop_size=500, eval_shorter_side=500)
