import drop_in


def test_the_swap_makes_gradients_reach_the_windows(capsys):
    found = drop_in.main(steps=1)
    places = ("start_input", "start_target", "ratio_input", "ratio_target")
    assert [found["before"][name] for name in places] == [0.0] * 4
    assert all(found["after"][name] > 0 for name in places)
    assert all(found[which]["strength"] > 0 for which in found)
    printed = capsys.readouterr().out
    before, after = (line.split("losses ")[1] for line in printed.splitlines() if "losses" in line)
    assert abs(float(before) - float(after)) < 0.01  # the same weights: windows at fractions of a frame, and dropout
