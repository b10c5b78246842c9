"""Help texts of the command line that several arguments share, and the list of examples."""

PRESET = (
    "a set of settings: default (byol chooses from the images), classic (those of an older project, "
    "PyTorch-BYOL), paper (those of the BYOL paper) or demo (a small network)"
)
HOURS = "training time in hours, such as 2 or 0.5; training then ends after this time"
RUN = "folder that `byol train` wrote, such as runs/cells"
LABELS = (
    "CSV file with the columns file,label; images without a label are left out (default: folders named after "
    "classes, if there are any)"
)
COLOURS = "CSV file with the columns file,label that colours the map"
METADATA_COLOURS = "CSV file with a column 'file' and others that can colour the map"
TEST = (
    "labelled images to test on (default: the test split of the data set, or a fifth of the labelled images)"
)
FOLDER = "folder for the results (default: runs/ and the name of the image folder)"
SETTINGS = "a setting, such as {example}; `byol config` lists all"
DEVICE = "device to compute on (default: a GPU if there is one)"
IMAGES = (
    "a folder, an image, a .txt or .csv file with image paths, a .npy array, a .tar file, or - to read "
    "paths from standard input"
)
EPILOG = """examples:
  byol demo                                  try it on generated images (about 4 minutes)
  byol check IMAGES/                         check the images; write a report with pictures
  byol train IMAGES/ -n                      show the settings byol would choose
  byol train IMAGES/ -o runs/cells           train; if interrupted, run it again
  byol train IMAGES/ --hours 2               train for two hours
  byol train IMAGES/ --init runs/cells       start from the weights of an earlier run
  byol train config.yaml trainer.max_epochs=40
  byol pack IMAGES/ --part 3/64              pack a part of a large set, one command per machine
  byol eval runs/cells --labels cells.csv    compare with simple methods
  byol compare runs/a runs/b                 compare results and settings
  byol card runs/cells                       write a description: method, results, limits
  byol replay runs/cells                     find where NaN or infinite values began
  byol report runs/cells                     write one HTML page with all results
  byol explore runs/cells                    browse images: map, search by picture, lists of files
  byol embed runs/cells NEW/ -o new.csv      compute features; if interrupted, run it again
  byol export runs/cells --format onnx       write the encoder for other programs
  byol finetune runs/cells --labels cells.csv    train a classifier
  byol predict runs/cells-finetuned NEW/ -o classes.csv   classify new images
  byol config config.yaml                    print the complete configuration
  byol env                                   print versions and hardware, for a bug report

Add settings to a command as section.key=value, such as trainer.max_epochs=40.
`byol config` lists them.
"""
