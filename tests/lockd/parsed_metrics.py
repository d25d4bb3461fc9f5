"""Whether Prometheus' own client reads what comes in, and finds it well named.

What `promtool check metrics` complains of: no help, no type, counters without
`_total`, other figures with it, and times in another unit than seconds.
"""

import sys

from prometheus_client.parser import text_string_to_metric_families

text = sys.stdin.read()
families = list(text_string_to_metric_families(text))
assert len(families) > 12, families
for family in families:
    assert family.name.startswith("lockkeeper_"), family
    assert family.documentation.endswith("."), family
    assert family.type in ("counter", "gauge", "histogram"), family
    if family.type == "histogram":
        assert family.name.endswith("_seconds"), family
        buckets = [sample for sample in family.samples if sample.name.endswith("_bucket")]
        counts = [sample.value for sample in buckets]
        assert counts == sorted(counts) and buckets[-1].labels == {"le": "+Inf"}, family
    assert not any(word in family.name for word in ("_ms", "millis", "minutes")), family
assert len({family.name for family in families}) == len(families)
# The reader names families as it thinks they should be named.
types = [line.split()[2:] for line in text.splitlines() if line.startswith("# TYPE ")]
assert len(types) == len(families)
for name, kind in types:
    assert name.endswith("_total") == (kind == "counter"), name
    assert not name.endswith(("_count", "_sum", "_bucket")), name
