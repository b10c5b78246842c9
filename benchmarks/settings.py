"""The settings of the benchmarks: network, view size, batch, and the image files that a step starts from."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Setting:
    """What every system computes; sizes in pixels. All have heads of the same size, the classic code's."""

    name: str
    network: str  # of torchvision and timm
    small_stem: bool  # 3x3 stride 1, no max-pool
    view_px: int
    batch: int
    file_width: int
    file_height: int
    file_suffix: str
    num_files: int
    preset: str  # of our configuration; its views
    hidden_size: int = 512
    projection_size: int = 128

    def sized(self, *, batch: int | None, tiny: bool) -> "Setting":
        """With another batch, or so small that a step takes a fraction of a second."""
        setting = self
        if tiny:
            setting = replace(
                setting,
                network="resnet18",
                view_px=32,
                batch=4,
                file_width=max(32, self.file_width // 10),
                file_height=max(32, self.file_height // 10),
                num_files=16,
            )
        if batch is not None:
            setting = replace(setting, batch=batch)
        return replace(setting, num_files=max(setting.num_files, 2 * setting.batch))

    def describe(self) -> str:
        stem = ", small stem" if self.small_stem else ""
        files = f"{self.file_width}x{self.file_height} {self.file_suffix[1:].upper()} files"
        return f"{self.network}{stem}, {self.view_px} px views, batch {self.batch}, from {files}"


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("a", "resnet18", False, 96, 64, 96, 96, ".jpg", 2048, "classic"),
        Setting("b", "resnet18", True, 32, 256, 32, 32, ".png", 4096, "default"),
        Setting("c", "resnet50", False, 224, 64, 500, 375, ".jpg", 512, "default"),
    )
}
