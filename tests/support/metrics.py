"""What /metrics says, read by prometheus_client."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


class Metrics:
    """Samples by their names."""

    def __init__(self, text: str) -> None:
        self._samples: dict[str, list[Sample]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self._samples.setdefault(sample.name, []).append(sample)

    def samples(self, name: str, **labels: str) -> list[Sample]:
        wanted = labels.items()
        return [each for each in self._samples.get(name, []) if wanted <= each.labels.items()]

    def value(self, name: str, **labels: str) -> float:
        (sample,) = self.samples(name, **labels)
        return sample.value

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        return {each.labels[label]: each.value for each in self.samples(name, **labels)}

    def sum(self, name: str) -> float:
        return sum(each.value for each in self.samples(name))
