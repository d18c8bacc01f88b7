"Supplies every field that pyproject.toml declares dynamic, from settings.ini."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
parser = ConfigParser(delimiters=["="])
parser.read(here/"settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
licences = {"apache2": "Apache-2.0"}
statuses = {"3": "3 - Alpha", "4": "4 - Beta", "5": "5 - Production/Stable"}
pythons = [f"3.{minor}" for minor in range(int(cfg["min_python"].split(".")[1]), 14)]
book, dev = cfg["book_requirements"].split(), cfg["dev_requirements"].split()


class BuildWithScripts(build_py):
    "`arcbook data` finds data_scripts beside the package in a clone; a wheel carries them inside of it"
    def run(self):
        super().run()
        if self.editable_mode: return
        inside = Path(self.build_lib)/"arcbook"/"data_scripts"
        self.mkpath(str(inside))
        for script in sorted((here/"data_scripts").glob("*.py")): self.copy_file(str(script), str(inside/script.name))


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=(here/"README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=cfg["keywords"].split(),
    author=cfg["author"],
    author_email=cfg["author_email"],
    license=licences[cfg["license"]],
    license_files=["LICENSE", "LICENSE-TEXT"],
    url=cfg["git_url"],
    project_urls={"Documentation": cfg["doc_host"] + cfg["doc_baseurl"], "Source": cfg["git_url"]},
    classifiers=[
        f"Development Status :: {statuses[cfg['status']]}",
        f"Intended Audience :: {cfg['audience']}",
        f"Natural Language :: {cfg['language']}",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        *[f"Programming Language :: Python :: {version}" for version in pythons],
    ],
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=["arcbook", "arcbook.*"]),
    install_requires=cfg["requirements"].split(),
    extras_require={"book": book, "dev": book + dev},
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],  # lets other nbdev sites link to ours
    },
    cmdclass={"build_py": BuildWithScripts},
    zip_safe=False,
)
