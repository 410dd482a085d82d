from palan.cli import main

main()
