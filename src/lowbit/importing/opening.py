from lowbit.importing.imported import Imported
import_model=is_foreign=None
