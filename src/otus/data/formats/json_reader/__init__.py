"""Read JSON files of any size, such as COCO annotations of gigabytes, in the memory of one batch.

``json.load`` makes Python objects of the whole file. Here it is read in windows of half a megabyte: a compiled scanner
finds the end of each record of an array; the records of a window are decoded together and appended to columns. An
invalid record is reported by index and field, and the others are still read.

Reading order:

1. :mod:`~otus.data.formats.json_reader.stream`: :class:`RecordReader`, the loop over windows and events of the scanner;
   records are decoded by msgspec into typed structs.
2. :mod:`~otus.data.formats.json_reader._scan_kernels`: the scanner, a state machine over brackets, strings and commas.
3. :mod:`~otus.data.formats.json_reader.column_builders`: growing arrays, and the columns of segmentations.
4. :mod:`~otus.data.formats.json_reader.number_records` and :mod:`~otus.data.formats.json_reader._number_kernels`: the fast
   path for records of numbers only, such as detection results, parsed straight to arrays.
"""
