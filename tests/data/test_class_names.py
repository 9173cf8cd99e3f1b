from resnet_jax.data.class_names import readable_names


def test_wordnet_ids_are_put_into_words_in_the_order_given():
    assert readable_names(["n01443537", "n01440764"]) == ["goldfish, Carassius auratus", "tench, Tinca tinca"]
    assert readable_names(["n15075141"]) == ["toilet tissue, toilet paper, bathroom tissue"]


def test_other_names_stay_even_when_some_are_wordnet_ids():
    assert readable_names(["cat", "dog"]) == ["cat", "dog"]
    assert readable_names(["n01440764", "dog"]) == ["n01440764", "dog"]
    assert readable_names(["n00000001"]) == ["n00000001"]
