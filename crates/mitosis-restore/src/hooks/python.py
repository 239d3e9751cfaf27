exec("""
import sys
modules = sys.modules
random = modules.get('random')
if hasattr(random, 'seed'):
    random.seed()
tempfile = modules.get('tempfile')
if hasattr(tempfile, '_name_sequence'):
    tempfile._name_sequence = None
uuid = modules.get('uuid')
if hasattr(uuid, '_node'):
    uuid._node = None
numpy = modules.get('numpy.random')
if hasattr(numpy, 'seed'):
    numpy.seed()
ssl = modules.get('_ssl')
if hasattr(ssl, 'RAND_add'):
    ssl.RAND_add(modules['posix'].urandom(48), 0.0)
hooks = modules.get('mitosis_fork')
if hooks is not None:
    hooks.run(0x0000000000000000)
""", {})
